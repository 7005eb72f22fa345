"""What fairseq registers: task, model, criterion."""
