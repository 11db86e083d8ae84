"""The report of a sweep: which configuration wins, by how much, whether that is noise, what next."""
