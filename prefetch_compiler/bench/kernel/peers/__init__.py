"""The peers: every other way to compute decode attention here. One file a family, one line in ``registry``."""
