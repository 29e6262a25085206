-- In which hours of its day there was an attribute, so that a search for a text that is hours away goes on there. Of those that are
-- here already it is not known: it may have been each.
alter table sonde_store.event_attributes add hours int not null default 16777215;
alter table sonde_store.event_attributes alter hours drop default;
comment on column sonde_store.event_attributes.hours is 'Bit 0 is the first hour of the day';

-- The same of stacks, and events by source port, which are too many of each type. Events that were summed up before are not in them.
comment on table sonde_store.event_words_1h is 'Events of each hour by interface (field 1), process name (2), state (3), as words, and by destination port (4); of all types together by source port (5) and stack (6)';
comment on column sonde_store.event_words_1h.word is '0: has no such word or stack; -1: has no port';
alter table sonde_store.event_digest add sports_after bigint not null default 0;
update sonde_store.event_digest set sports_after = through;
comment on column sonde_store.event_digest.sports_after is 'Events above this id and up to `through` are in event_words_1h by source port and stack';
