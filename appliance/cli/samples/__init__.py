"""The documents and questions of `appliance demo`."""
