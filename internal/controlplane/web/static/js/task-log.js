import { count, timeElement } from './format.js'
import { live } from './live.js'
import { t } from './words.js'

const MOST_LINES = 400
const SETTLE = 120
const DATED = /^(?:time=)?(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d+)?(?:Z|[+-]\d\d:\d\d)) (.*)$/s
const MARKED = /^level=(\S+) msg=("(?:[^"\\]|\\.)*"|\S+)(.*)$/s
const TIMED = /^(\d\d:\d\d:\d\d)\S* (.*)$/s

/**
 * The last lines of a machine's log. It follows the end as long as the box says
 * so; what is typed into the search hides the lines without it, and the button
 * beside it asks the server to search all of the log.
 */
class TaskLog extends HTMLElement {
  #stop = null
  #waiting = []
  #frame = 0
  #timer = 0

  connectedCallback() {
    this.#stop = new AbortController()
    const signal = this.#stop.signal
    if (!this.hasAttribute('data-found')) live.addEventListener('log', (e) => this.#take(e.detail), { signal })
    this.querySelector('input[type="search"]')?.addEventListener('input', () => {
      clearTimeout(this.#timer)
      this.#timer = setTimeout(() => this.#search(), SETTLE)
    }, { signal })
    const view = this.querySelector('.log')
    const follow = this.#follow
    if (follow && !this.hasAttribute('data-found')) {
      follow.closest('[data-part="follow"]').hidden = false
      follow.addEventListener('change', () => { if (follow.checked) view.scrollTop = view.scrollHeight }, { signal })
      // Who scrolls up wants to read; who comes back to the end wants to follow.
      view.addEventListener('scroll', () => { follow.checked = this.#atEnd }, { signal, passive: true })
    }
    view.scrollTop = view.scrollHeight
    this.#mark()
  }

  disconnectedCallback() {
    this.#stop?.abort()
    cancelAnimationFrame(this.#frame)
    clearTimeout(this.#timer)
  }

  get #follow() { return this.querySelector('[data-part="follow"] input') }

  get #atEnd() {
    const view = this.querySelector('.log')
    return view.scrollTop + view.clientHeight >= view.scrollHeight - 24
  }

  get #wanted() { return this.querySelector('input[type="search"]')?.value.trim().toLowerCase() ?? '' }

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
    const following = this.#follow ? this.#follow.checked : this.#atEnd
    list.append(...this.#waiting.splice(0).slice(-MOST_LINES).map(row))
    while (list.childElementCount > MOST_LINES) {
      // What a person reads stays where it is when lines above it go.
      const gone = list.firstElementChild.offsetHeight
      list.firstElementChild.remove()
      if (!following) view.scrollTop -= gone
    }
    const empty = view.querySelector('.log-empty')
    if (empty) empty.hidden = true
    if (this.#wanted) this.#search()
    if (following) view.scrollTop = view.scrollHeight
  }

  #search() {
    const wanted = this.#wanted
    const rows = this.querySelectorAll('.log li')
    let found = 0
    for (const li of rows) {
      li.hidden = wanted !== '' && !li.textContent.toLowerCase().includes(wanted)
      if (!li.hidden) found++
    }
    this.#mark()
    const says = this.querySelector('[data-part="found"]')
    if (says) says.textContent = wanted ? t('%s of %s lines shown here', count(found), count(rows.length)) : ''
  }

  // The browser paints what was found; the text of the lines stays whole.
  #mark() {
    if (!globalThis.Highlight || !CSS.highlights) return
    const wanted = this.#wanted
    CSS.highlights.delete('log-found')
    if (!wanted) return
    const ranges = []
    for (const line of this.querySelectorAll('.log li:not([hidden]) > :last-child')) {
      const text = line.firstChild
      if (text?.nodeType !== Node.TEXT_NODE) continue
      const lower = text.data.toLowerCase()
      // A letter whose small form is longer moves what follows: not marked then.
      if (lower.length !== text.data.length) continue
      for (let at = lower.indexOf(wanted); at >= 0; at = lower.indexOf(wanted, at + wanted.length)) {
        const range = new Range()
        range.setStart(text, at)
        range.setEnd(text, at + wanted.length)
        ranges.push(range)
      }
    }
    if (ranges.length) CSS.highlights.set('log-found', new Highlight(...ranges))
  }
}

function row(line) {
  const li = document.createElement('li')
  li.dataset.columns = '2'
  li.dataset.line = line
  const from = document.createElement('span')
  from.className = 'from'
  const text = document.createElement('span')
  text.className = 'line'
  const dated = DATED.exec(line)
  const timed = dated ? null : TIMED.exec(line)
  if (dated) from.append(timeElement(new Date(dated[1]), 'seconds'))
  if (timed) from.textContent = timed[1]
  text.textContent = dated ? plain(dated[2]) : timed?.[2] ?? line
  if (dated && /^WARN /.test(text.textContent)) li.dataset.level = 'warn'
  if (dated && /^ERROR /.test(text.textContent)) li.dataset.level = 'error'
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
