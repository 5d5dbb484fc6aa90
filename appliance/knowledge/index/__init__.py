"""What a unit of passages is searched by: vectors and words."""
