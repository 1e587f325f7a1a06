-- Back to 0017.
ALTER TABLE blackboard.tasks SET (fillfactor = 80);
