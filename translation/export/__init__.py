"""A team for programs without fairseq: CTranslate2."""
