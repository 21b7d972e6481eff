"""The framed transport: the server's side of connections, and one exchange on them."""
