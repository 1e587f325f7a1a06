-- Back to 0017; all anew, for a dump tells them in the order in which they were set.
ALTER TABLE blackboard.tasks RESET (
    fillfactor, autovacuum_vacuum_scale_factor, autovacuum_analyze_scale_factor, autovacuum_analyze_threshold);
ALTER TABLE blackboard.tasks SET (
    fillfactor = 80, autovacuum_vacuum_scale_factor = 0.02, autovacuum_analyze_scale_factor = 0.05,
    autovacuum_analyze_threshold = 1000);
