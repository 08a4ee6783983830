"""How the mathematics stays right in float32: special functions, Gamma and Dirichlet laws."""
