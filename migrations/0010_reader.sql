-- Whoever reads as sonde_reader, a dashboard above all, must not hold up what writes: its statements end, it waits for no
-- lock for long, and its transactions are read-only. A role that is only a member of it has its own settings: see docs/grafana.md.
do $$
declare
    setting text;
begin
    foreach setting in array array[
        'statement_timeout = ''30s''', 'lock_timeout = ''5s''', 'idle_in_transaction_session_timeout = ''60s''',
        'default_transaction_read_only = on', 'work_mem = ''16MB''']
    loop
        execute format('alter role sonde_reader in database %I set %s', current_database(), setting);
    end loop;
exception
    when insufficient_privilege or undefined_object then
        raise warning 'may not set time-outs for role sonde_reader in this database (%): set them, docs/grafana.md has them', sqlerrm;
end $$;
