"""Results for people: text on the terminal, plots, and one self-contained HTML file."""
