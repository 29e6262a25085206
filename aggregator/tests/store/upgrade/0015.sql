-- Event 1 is summed up by these too.
insert into sonde_store.event_words_1h (time, type, field, word, n)
select date_trunc('hour', time, 'UTC'), 0, v.field, v.word, 1 from sonde_store.events
cross join lateral (values (5::smallint, coalesce(sport, -1)), (6, coalesce(stack_id, 0))) v(field, word)
where id = 1;
update sonde_store.event_digest set sports_after = 0;
