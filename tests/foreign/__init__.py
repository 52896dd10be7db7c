"""Other people's implementations behind the protocol, and what the conformance kit says of them."""
