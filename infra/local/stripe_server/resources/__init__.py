"""One module per family of Stripe's resources; each adds its routes and kinds."""
