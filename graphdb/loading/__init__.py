"""How rows come in: read, checked, mapped to idx, and told apart from those that came before."""
