"""What a user would pick instead: small programs that run by themselves, each in the environment it needs."""
