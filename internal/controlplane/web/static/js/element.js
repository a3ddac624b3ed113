/**
 * Base of the elements that show messages about one task: keeps only the
 * newest message of a kind and draws at most once a second, between frames.
 */
import { live } from './live.js'

const DRAW_EVERY = 1_000

export class TaskElement extends HTMLElement {
  #drawnAt = 0
  #timer = 0
  #waiting = null
  #rev = 0
  #stop = null

  /** Types of messages the element draws. */
  static types = []

  get task() { return this.getAttribute('task') }

  connectedCallback() {
    const stop = new AbortController()
    this.#stop = stop
    this.#rev = Number(document.body.dataset.rev) || 0
    for (const type of this.constructor.types) {
      live.addEventListener(type, (e) => this.#take(e.detail), { signal: stop.signal })
    }
  }

  disconnectedCallback() {
    this.#stop?.abort()
    clearTimeout(this.#timer)
  }

  /** Shows a message; for subclasses. */
  draw(message) {}

  #take(message) {
    // Nothing moves backwards: what was replayed or polled may be older.
    if (message.task_id !== this.task || message.rev < this.#rev) return
    this.#rev = message.rev ?? this.#rev
    this.#waiting = message
    if (this.#timer) return
    const wait = Math.max(0, this.#drawnAt + DRAW_EVERY - Date.now())
    this.#timer = setTimeout(() => requestAnimationFrame(() => {
      this.#timer = 0
      this.#drawnAt = Date.now()
      this.draw(this.#waiting)
    }), wait)
  }

  /** Writes text into the part of that name, if the page has it. */
  part(name, text) {
    const el = this.querySelector(`[data-part="${name}"]`)
    if (el && text !== undefined && el.textContent !== text) el.textContent = text
    return el
  }
}
