"""The demonstration: two trained networks, one coded model, three servers, one of them killed."""
