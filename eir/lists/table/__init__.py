"""Content of a list as sorted columns: build, change, encode, digest. The only form of the content besides the image."""
