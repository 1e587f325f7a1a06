"""The store: the embedded server, connections and the statements that run on them."""
