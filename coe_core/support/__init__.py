"""What both adapters need beside arrays: files, aims, commands, provenance, progress, reports."""
