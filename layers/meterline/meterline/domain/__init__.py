"""The rules, pure: no AWS, no Stripe, no environment and no clock."""
