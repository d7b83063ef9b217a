"""Reports: tables and sentences, figures, HTML pages, and the files they are written to."""
