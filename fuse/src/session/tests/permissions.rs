//! Who may put, and whose rows a search returns.
