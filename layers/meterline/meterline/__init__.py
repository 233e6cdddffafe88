"""Usage-based billing for AI products: the service behind every function."""
