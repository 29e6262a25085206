// Server-sent events from a byte stream. Pure. Not EventSource: that hides keep-alives, so a dead connection looks like
// a quiet one, and it hides the problem JSON of a refused filter.

export interface Message {
  event: string;
  data: string;
  id: string | null;
}

export class SseParser {
  private rest = "";
  private event = "";
  private data: string[] = [];
  private id: string | null = null;

  /** Takes the next piece of text, cut anywhere, and gives the messages that are complete now. */
  push(piece: string): Message[] {
    const out: Message[] = [];
    // A CR at the very end may be the first half of CRLF: it waits for the next piece.
    const text = this.rest + piece;
    const held = text.endsWith("\r") ? 1 : 0;
    const lines = text.slice(0, text.length - held).split(/\r\n|\n|\r/);
    this.rest = (lines.pop() ?? "") + text.slice(text.length - held);
    for (const line of lines) {
      const message = this.line(line);
      if (message) out.push(message);
    }
    return out;
  }

  private line(line: string): Message | null {
    if (line === "") return this.dispatch();
    const colon = line.indexOf(":");
    if (colon === 0) return null;
    const field = colon < 0 ? line : line.slice(0, colon);
    const value = colon < 0 ? "" : line.slice(colon + 1).replace(/^ /, "");
    if (field === "event") this.event = value;
    else if (field === "data") this.data.push(value);
    else if (field === "id") this.id = value;
    return null;
  }

  private dispatch(): Message | null {
    const message = { event: this.event === "" ? "message" : this.event, data: this.data.join("\n"), id: this.id };
    const complete = this.data.length > 0;
    this.event = "";
    this.data = [];
    return complete ? message : null;
  }
}
