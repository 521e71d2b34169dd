"""``kvprefetch report``: tuning databases and studies as one HTML page that needs no network."""
