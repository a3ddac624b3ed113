import { TaskElement } from './element.js'
import { amount, left, speed } from './format.js'
import { STALE_AFTER } from './stages.js'
import { t } from './words.js'

/** One figure of a running install in a table: bytes, speed, or the time left. */
class TaskFigure extends TaskElement {
  static types = ['progress']
  #timer = 0

  draw({ details }) {
    const figure = this.getAttribute('figure')
    if (figure === 'bytes') {
      this.textContent = amount(details)
      return
    }
    const moving = details?.bytes_per_second > 0
    if (figure === 'speed') this.textContent = moving ? speed(details.bytes_per_second) : '–'
    else this.textContent = left(details)
    clearTimeout(this.#timer)
    this.#timer = setTimeout(() => { this.textContent = t('unknown') }, STALE_AFTER)
  }
}
customElements.define('task-figure', TaskFigure)
