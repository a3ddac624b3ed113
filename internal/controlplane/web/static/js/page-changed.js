import { icon } from './icons.js'
import { live } from './live.js'
import { t } from './words.js'

const SETTLE = 1_200 // several changes in a row make one reload
const QUIET = 6_000 // a list is drawn anew only when nobody has touched it for so long
const AGAIN = 30_000 // a second resync within this time asks first

/**
 * Decides what to do when a change needs another page than the one shown:
 * load it again, or, where a person reads or types, say so and wait.
 */
class PageChanged extends HTMLElement {
  #edited = false
  #touchedAt = 0
  #changes = new Set()
  #timer = 0
  #rev = Number(document.body.dataset.rev) || 0
  #watch = document.body.dataset.watch

  connectedCallback() {
    for (const type of ['pointermove', 'pointerdown', 'keydown', 'wheel', 'touchmove']) {
      addEventListener(type, () => { this.#touchedAt = Date.now() }, { passive: true })
    }
    document.querySelector('main').addEventListener('input', () => { this.#edited = true })
    live.addEventListener('status', (e) => this.#status(e.detail))
    live.addEventListener('hardware', (e) => this.#hardware(e.detail))
    live.addEventListener('region', (e) => this.#region(e.detail))
    live.addEventListener('resync', () => this.#resync())
  }

  #status({ task_id: id, status, attempt, rev, polled }) {
    if (this.#watch === 'all') {
      if (document.querySelector('task-table')) return // it looks after itself
      const shown = document.querySelectorAll(`[data-task="${CSS.escape(id)}"]`)
      const same = [...shown].some((el) => el.querySelector(`[data-status="${CSS.escape(status)}"]`))
      // Polling names every task there is, also those this page leaves out.
      if (same || rev < this.#rev || (polled && !shown.length)) return
      this.#changes.add(id)
      return this.#whenQuiet()
    }
    const head = document.querySelector('task-status[data-page]')
    if (id !== this.#watch || !head || rev < this.#rev) return
    // While it waits, a status that is told again is one more approval, or another plan.
    const again = status === 'awaiting_approval' && rev > this.#rev && !polled && this.hidden
    if (!again && this.#first(head) === status && (!attempt || Number(head.getAttribute('attempt')) === attempt)) return
    this.#soon(t('This task changed after you opened the page.'))
  }

  // The element itself moves on with every message; the page stays as it was
  // drawn, so the status it was drawn with is remembered once.
  #drawnWith = document.querySelector('task-status[data-page]')?.dataset.status
  #first() { return this.#drawnWith }

  #hardware({ task_id: id, rev }) {
    if (id !== this.#watch || rev <= this.#rev) return
    this.#soon(t('The machine reported again. What you see may no longer be the plan.'))
  }

  #region({ region_id: id, status }) {
    const shown = document.querySelector(`region-status[region="${CSS.escape(id)}"]`)
    if (!shown && this.#watch === 'all') {
      this.#changes.add(id)
      this.#whenQuiet()
    }
  }

  #resync() {
    const last = Number(sessionStorage.getItem('lpmos-resync')) || 0
    if (Date.now() - last < AGAIN) return this.#say(t('The connection was interrupted for longer than changes are kept.'))
    sessionStorage.setItem('lpmos-resync', String(Date.now()))
    this.#soon(t('The connection was interrupted for longer than changes are kept.'))
  }

  get #busy() {
    return this.#edited || document.querySelector('form.decision, details.ask[open]') !== null
  }

  #soon(text) {
    if (this.#busy) return this.#say(text)
    clearTimeout(this.#timer)
    this.#timer = setTimeout(() => (this.#busy ? this.#say(text) : location.reload()), SETTLE)
  }

  #whenQuiet() {
    this.#say(this.#changes.size === 1 ? t('1 change is not shown yet.') : t('%s changes are not shown yet.', this.#changes.size), 'info')
    clearTimeout(this.#timer)
    const look = () => {
      const wait = this.#touchedAt + QUIET - Date.now()
      if (this.#edited || document.activeElement?.matches('main a, main button, main input, main select')) return
      if (wait > 0) this.#timer = setTimeout(look, wait)
      else location.reload()
    }
    this.#timer = setTimeout(look, SETTLE)
  }

  #say(text, kind = '') {
    if (this.hidden) {
      const words = document.createElement('div')
      const again = document.createElement('a')
      words.setAttribute('role', 'status')
      again.className = 'button'
      again.dataset.size = 's'
      again.href = location.pathname + location.search
      again.textContent = t('Show it as it is now')
      this.className = 'banner'
      this.append(icon(kind === 'info' ? 'info' : 'diff'), words, again)
      this.hidden = false
    }
    this.dataset.kind = kind
    this.querySelector('div').textContent = text
  }
}
customElements.define('page-changed', PageChanged)
