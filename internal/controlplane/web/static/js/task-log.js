import { TaskElement } from './element.js'
import { timeElement } from './format.js'
import { live } from './live.js'

const MOST_LINES = 400
const DATED = /^(?:time=)?(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d+)?(?:Z|[+-]\d\d:\d\d)) (.*)$/s
const MARKED = /^level=(\S+) msg=("(?:[^"\\]|\\.)*"|\S+)(.*)$/s
const TIMED = /^(\d\d:\d\d:\d\d)\S* (.*)$/s

/** The last lines of a machine's log. It follows while its end is in view. */
class TaskLog extends HTMLElement {
  #stop = null
  #waiting = []
  #frame = 0

  connectedCallback() {
    this.#stop = new AbortController()
    live.addEventListener('log', (e) => this.#take(e.detail), { signal: this.#stop.signal })
    const view = this.querySelector('.log')
    view.scrollTop = view.scrollHeight
  }

  disconnectedCallback() {
    this.#stop?.abort()
    cancelAnimationFrame(this.#frame)
  }

  #take({ task_id: id, lines, whole }) {
    if (id !== this.getAttribute('task') || !lines?.length) return
    if (whole) lines = this.#unseen(lines)
    if (!lines.length) return
    this.#waiting.push(...lines)
    if (!this.#frame) this.#frame = requestAnimationFrame(() => this.#draw())
  }

  // A polled log is the whole tail: only what follows the last line shown is new.
  #unseen(lines) {
    const last = this.#waiting.at(-1) ?? this.querySelector('li:last-child')?.dataset.line
    const at = last === undefined ? -1 : lines.lastIndexOf(last)
    return lines.slice(at + 1)
  }

  #draw() {
    this.#frame = 0
    const view = this.querySelector('.log')
    const list = view.querySelector('ol')
    const following = view.scrollTop + view.clientHeight >= view.scrollHeight - 24
    list.append(...this.#waiting.splice(0).slice(-MOST_LINES).map(row))
    while (list.childElementCount > MOST_LINES) list.firstElementChild.remove()
    const empty = view.querySelector('.log-empty')
    if (empty) empty.hidden = true
    if (following) view.scrollTop = view.scrollHeight
  }
}

function row(line) {
  const li = document.createElement('li')
  li.dataset.columns = '2'
  li.dataset.line = line
  const from = document.createElement('span')
  from.className = 'from'
  const text = document.createElement('span')
  const dated = DATED.exec(line)
  const timed = dated ? null : TIMED.exec(line)
  if (dated) from.append(timeElement(new Date(dated[1]), 'seconds'))
  if (timed) from.textContent = timed[1]
  text.textContent = dated ? plain(dated[2]) : timed?.[2] ?? line
  li.append(from, text)
  return li
}

// What log/slog writes as level=INFO msg="a b" c=d is shown as a b c=d; a level
// that should be looked at stays. The server does the same (plainLog).
function plain(text) {
  const marked = MARKED.exec(text)
  if (!marked) return text
  let [, level, message, rest] = marked
  try {
    if (message.startsWith('"')) message = JSON.parse(message)
  } catch {
    // Go escapes a few bytes in ways JSON does not know: shown as they came.
  }
  return (level === 'INFO' ? '' : level + ' ') + message + rest
}
customElements.define('task-log', TaskLog)
