-- What a frontend finds wrong with itself, or nothing: when most of them find the same, none of them sends its traffic to the others.
ALTER TABLE frontends ADD COLUMN unfit TEXT NOT NULL DEFAULT '';
