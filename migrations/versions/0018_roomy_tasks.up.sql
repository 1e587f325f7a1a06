-- A claim and a completion each write a version of the row: in the page where it lies they need no other page, make no
-- file longer, and log what has changed instead of the whole row.
ALTER TABLE blackboard.tasks SET (fillfactor = 50);
