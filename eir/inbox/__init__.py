"""The drop folder: what lies in it, which releases of it are loaded, in which order. May import changes and what it may."""
