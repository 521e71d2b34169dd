"""The tuning database: keys, records, files, and which file says what."""
