package systest
