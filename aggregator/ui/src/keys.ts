// Keys of the list: / search, p pause, j and k move, Enter opens (the browser's own for a button).

import { useEffect } from "react";

import type { EventFeed } from "./feed";

export function useListKeys(control: EventFeed, paused: boolean): void {
  useEffect(() => {
    const pressed = (event: KeyboardEvent) => {
      if (event.ctrlKey || event.metaKey || event.altKey) return;
      if (event.target instanceof Element && event.target.closest("input, select, textarea")) return;
      if (event.key === "/") {
        event.preventDefault();
        document.querySelector<HTMLInputElement>("input[name=q]")?.focus();
      } else if (event.key === "p") control.pause(!paused);
      else if (event.key === "j") move(1);
      else if (event.key === "k") move(-1);
    };
    document.addEventListener("keydown", pressed);
    return () => {
      document.removeEventListener("keydown", pressed);
    };
  }, [control, paused]);
}

function move(by: number): void {
  const rows = [...document.querySelectorAll<HTMLButtonElement>(".events .fold")];
  const at = rows.findIndex((row) => row === document.activeElement);
  const next = rows[at < 0 ? 0 : Math.min(rows.length - 1, Math.max(0, at + by))];
  next?.focus();
  next?.scrollIntoView({ block: "nearest" });
}
