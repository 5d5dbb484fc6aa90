"""What locked children do, each for one request about one descriptor. Light on imports: all of them map it."""
