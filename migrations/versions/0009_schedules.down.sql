DROP FUNCTION blackboard.fire_schedule(uuid, uuid, timestamptz, timestamptz[], uuid[], integer, timestamptz);
DROP FUNCTION blackboard.remove_schedule(uuid, uuid, text);
DROP FUNCTION blackboard.pause_schedule(uuid, uuid, boolean, timestamptz, text, text);
DROP FUNCTION blackboard.add_schedule(uuid, uuid, text, text, text, text, text, smallint, jsonb, jsonb, text, timestamptz, text);
DROP TABLE blackboard.schedules;
DROP FUNCTION blackboard.history_schedules_update();
DROP FUNCTION blackboard.history_schedules_insert();
DROP FUNCTION blackboard.schedule_options_fit(jsonb);
