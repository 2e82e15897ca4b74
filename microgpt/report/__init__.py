"""Pages about models: of one, on which it can be tried (`page`), and of several, which are compared (`comparison`)."""
