"""The processes of a node: who accepts, who answers, who starts them, and what passes between them."""
