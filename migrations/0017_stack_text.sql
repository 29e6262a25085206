-- What a search for a text looks through: joining and lowering the frames of all stacks takes seven times as long as looking.
create function sonde_store.stack_text(frames text[]) returns text
    language sql immutable strict parallel safe
    as $$ select lower(array_to_string(frames, E'\n')) $$;
comment on function sonde_store.stack_text is 'Frames in small letters, each but the last with a line feed';
alter table sonde_store.stacks add text text generated always as (sonde_store.stack_text(frames)) stored;
comment on column sonde_store.stacks.text is 'What texts are looked for in';
