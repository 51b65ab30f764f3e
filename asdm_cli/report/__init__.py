"""What a run leaves for people and programs: tables, plots, picture grids, protocol cards."""
