"""Looking at running programs: how much of their page tables is the same in several of them."""
