"""Detection: trouble told from noise, with a beginning and an end."""
