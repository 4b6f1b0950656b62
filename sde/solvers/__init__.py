"""Part of sdeuq."""
