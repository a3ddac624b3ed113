import { timeElement } from './format.js'
import { setIcon } from './icons.js'
import { live } from './live.js'

const DRAW_EVERY = 1_000
const MOST = 8
const ASKED = 20 // of a burst, the newest

/**
 * The last events of all tasks. What happens is put on top, at most once a
 * second, and not while a pointer or the focus is in the list.
 */
class RecentEvents extends HTMLElement {
  #stop = null
  #waiting = new Map() // id → the newest status
  #timer = 0

  connectedCallback() {
    this.#stop = new AbortController()
    live.addEventListener('status', ({ detail }) => {
      if (detail.polled && this.#shown(detail.task_id) === detail.status) return
      if (detail.polled && !this.#shown(detail.task_id)) return
      this.#waiting.delete(detail.task_id)
      this.#waiting.set(detail.task_id, detail.status)
      this.#soon()
    }, { signal: this.#stop.signal })
  }

  disconnectedCallback() {
    this.#stop?.abort()
    clearTimeout(this.#timer)
  }

  #shown(id) { return this.querySelector(`li[data-task="${CSS.escape(id)}"]`)?.dataset.status }

  #soon() {
    this.#timer ||= setTimeout(() => {
      this.#timer = 0
      if (this.matches(':hover, :focus-within')) return this.#soon()
      this.#draw()
    }, DRAW_EVERY)
  }

  async #draw() {
    const ids = [...this.#waiting.keys()].slice(-ASKED)
    this.#waiting.clear()
    let rows
    try {
      const answer = await fetch(`/tasks/rows?${new URLSearchParams({ ids: ids.join(',') })}`, { cache: 'no-store' })
      if (!answer.ok) return
      rows = (await answer.json()).rows
    } catch { return } // the page says by itself that it is not live
    const list = this.querySelector('ol')
    for (const data of rows) {
      if (this.#shown(data.id) === data.status) continue
      list.prepend(this.#row(data))
    }
    while (list.childElementCount > MOST) list.lastElementChild.remove()
  }

  #row(data) {
    const row = this.querySelector('template').content.firstElementChild.cloneNode(true)
    row.dataset.status = data.status
    row.dataset.task = data.id
    row.querySelector('time').replaceWith(timeElement(new Date(data.updated), 'seconds'))
    setIcon(row, data.status)
    const link = row.querySelector('a')
    link.setAttribute('href', `/tasks/${data.id}`)
    link.firstElementChild.textContent = data.host
    row.querySelector('[data-part="text"]').textContent = data.event
    row.querySelector('[data-part="note"]').textContent = data.note
    row.querySelector('.sub').hidden = !data.note
    return row
  }
}
customElements.define('recent-events', RecentEvents)
