"""A discrete-event simulation of many servers; drives the client's own policies on a virtual clock."""
