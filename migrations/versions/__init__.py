"""One revision a file, its SQL beside it: ``NNNN_name.up.sql`` and ``NNNN_name.down.sql``."""
