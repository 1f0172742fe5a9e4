"""Images to features and vectors, as many as there are: always busy, resumable, on any number of devices and hosts."""
