"""What other runtimes say about a file: their own parsers where they are installed, else what is known of them."""
