"""The command line: what people and scripts type. Puts parts together for one piece of work, and prints what came of it."""
